"""Files of a reader study: canonical JSON, and answers that are not what they should be."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reader_studies import answer1, answer2, answers_to, build_study, write_knees

from kecae_training.reader_study import formats
from kecae_training.reader_study.canonical import FormatError, add_hash, canonical_json, digest

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("formats")
    with pytest.MonkeyPatch.context() as patch:
        return build_study(patch, write_knees(root / "knees"), root / "study", n=4)


@given(values)
def test_canonical_json_is_one_for_equal_values(value):
    """It can be read back, is compact and does not depend on the order of keys; so the hash is the content's."""
    raw = canonical_json(value)
    assert json.loads(raw) == value
    assert canonical_json(reordered(value)) == raw


def reordered(value):
    if isinstance(value, dict):
        return {k: reordered(value[k]) for k in reversed(list(value))}
    return [reordered(v) for v in value] if isinstance(value, list) else value


def test_canonical_json_is_what_javascript_writes():
    """As ``JSON.stringify`` of the same value in Chromium: escapes in short form and lower hex, the rest as UTF-8."""
    value = {"b": [1, True, None, "é\u2028\x7f\U0001f9b4"], "a": '"\\/\b\f\n\r\t\x01\ud800'}
    wanted = '{"a":"\\"\\\\/\\b\\f\\n\\r\\t\\u0001\\ud800","b":[1,true,null,"é\u2028\x7f\U0001f9b4"]}'
    assert canonical_json(value) == wanted.encode()
    assert digest({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    for float_or_worse in (1.0, float("nan"), (1,), {1: 2}, b"x"):
        with pytest.raises(ValueError, match="canonical"):
            canonical_json([float_or_worse])


def first_of(built, phase):
    return next(iter(built.key[phase]))


def damaged(built):
    """Name -> answers that must be refused, and a word of the reason."""
    good = answers_to(built.study)
    one, two = first_of(built, "phase1"), first_of(built, "phase2")
    fewer1 = {k: v for k, v in good["phase1"].items() if k != one}
    fewer2 = {k: v for k, v in good["phase2"].items() if k != two}
    study = built.study

    def phase1(answer):
        return answers_to(study, phase1={**good["phase1"], one: answer})

    def phase2(answer):
        return answers_to(study, phase2={**good["phase2"], two: answer})

    return {
        "edited": ({**good, "reader": "bob"}, "edited"),
        "no hash": ({k: v for k, v in good.items() if k != "sha256"}, "fields missing"),
        "foreign": (answers_to(study, study="0" * 64), "foreign"),
        "format": (answers_to(study, format="else"), "format"),
        "version": (answers_to(study, version=1), "version"),
        "incomplete": (answers_to(study, complete=False, phase2=fewer2), "incomplete .phase 2: 3 of 4"),
        "not ended": (answers_to(study, finished=None), "no time of its end"),
        "missing 1": (answers_to(study, phase1=fewer1), "phase 2 before phase 1 was complete"),
        "missing 2": (answers_to(study, phase2=fewer2), "says it is complete"),
        "unknown": (answers_to(study, phase1={**good["phase1"], "f" * 32: answer1()}), "unknown items"),
        "order": (answers_to(study, order={**good["order"], "phase1": [one]}), "order"),
        "reader": (answers_to(study, reader="../bob"), "reader"),
        "grade": (phase1(answer1(grade="1")), "accepted are '0', '2'"),
        "confidence": (phase1(answer1(confidence=6)), "from 1 to 5"),
        "true is no number": (phase1(answer1(confidence=True)), "from 1 to 5"),
        "realism": (phase2(answer2(realism=0)), "from 1 to 5"),
        "matches": (phase2(answer2(matches="maybe")), "'partly'"),
        "remark": (phase2(answer2(remark=5)), "accepted is text"),
        "time": (phase1({**answer1(), "at": "yesterday"}), "accepted is a time"),
        "local time": (phase1({**answer1(), "at": "2026-01-31T12:00:00+01:00"}), "accepted is a time"),
        "negative": (phase1({**answer1(), "milliseconds": -1}), "milliseconds"),
        "extra": (phase1({**answer1(), "arm": "real"}), "unknown: ..arm"),
    }


def test_answers_that_cannot_be_counted_are_refused_with_the_reason(built, tmp_path):
    """Everything that would make a wrong table, one by one; the intact answers are taken."""
    path = tmp_path / "answers.json"
    path.write_bytes(canonical_json(answers_to(built.study)))
    assert formats.read_answers(path, built.key)["reader"] == "anna"
    for name, (value, reason) in damaged(built).items():
        path.write_text(json.dumps(value))
        with pytest.raises(FormatError, match=reason):
            print(name, formats.read_answers(path, built.key))


def test_partial_answers_are_taken_when_asked_for(built, tmp_path):
    """A study that is still going on: incomplete is taken then, edited or foreign never is."""
    good = answers_to(built.study)
    half = dict(list(good["phase1"].items())[:2])
    value = answers_to(built.study, complete=False, finished=None, phase1=half, phase2={})
    path = tmp_path / "answers.json"
    path.write_bytes(canonical_json(value))
    assert len(formats.read_answers(path, built.key, partial=True)["phase1"]) == 2
    path.write_bytes(canonical_json({**value, "reader": "bob"}))
    with pytest.raises(FormatError, match="edited"):
        formats.read_answers(path, built.key, partial=True)


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"null", b"{", b"\xff", b'{"a":1,"a":1}', b'{"a":1.5}', b'{"a":NaN}', b"[" * 100_000]
)
def test_files_that_are_no_json_are_refused(built, tmp_path, raw):
    """Whatever a reader sends by mistake is an error that names the file."""
    path = tmp_path / "answers.json"
    path.write_bytes(raw)
    for read in (lambda: formats.read_answers(path, built.key), lambda: formats.read_key(path)):
        with pytest.raises(FormatError, match=r"answers\.json"):
            read()


@settings(max_examples=150)
@given(st.data())
def test_a_damaged_file_is_refused_and_never_crashes(built, data):
    """Any value anywhere in study, key or answers: taken as it was, or FormatError. Nothing else escapes."""
    which = data.draw(st.sampled_from(["study", "key", "answers"]))
    original = {"study": built.study, "key": built.key, "answers": answers_to(built.study)}[which]
    value = copy.deepcopy(original)
    place = value
    while True:
        name = data.draw(st.sampled_from(sorted(place))) if isinstance(place, dict) else 0
        inner = place[name]
        if not (isinstance(inner, (dict, list)) and inner and data.draw(st.booleans())):
            break
        place = inner
    place[name] = data.draw(values)
    value = add_hash(value, {"study": "id", "answers": "sha256"}[which]) if which != "key" else value
    try:
        if which == "study":
            formats.check_study(value)
        elif which == "key":
            formats.check_key(value)
        else:
            formats.check_answers(value, formats.scope_of(built.study))
    except FormatError:
        return
