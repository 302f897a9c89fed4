"""Draw the pictures of README and docs: phantoms only, no radiograph.

    python -m kecae_bench.pictures

docs/images/exchange.png: two rows of the demo's contact sheet. docs/images/phantoms.png: three phantoms a grade.
"""

import torch

from kecae_aug.phantom import PhantomKnees
from kecae_aug.phantom.demo import SEEN_SEED, DemoConfig, DemoKnees, exchange_test, sheet_columns
from kecae_aug.phantom.truth import GRADES
from kecae_aug.sheet import contact_sheet
from kecae_aug.weights.io import load_weights
from kecae_bench.record import PROJECT

IMAGES = PROJECT / "docs" / "images"


def main() -> None:
    config = DemoConfig()
    model = load_weights(config.weights)
    knees = DemoKnees.draw(config.test_patients, model.config.image_size, SEEN_SEED + 2)
    columns, texts = sheet_columns(knees, exchange_test(model, knees))
    rows = [0, 4]  # one of each direction
    contact_sheet(
        {name: images[rows] for name, images in columns.items()},
        [texts[row] for row in rows],
        path=IMAGES / "exchange.png",
    )
    grades = {}
    for grade in GRADES:
        patients = PhantomKnees(3, (grade,), image_size=176, seed=4, mirror_right=True)
        grades[f"KL {grade}"] = torch.stack([patients[2 * i][0] for i in range(3)])
    contact_sheet(grades, cell=176, path=IMAGES / "phantoms.png")


if __name__ == "__main__":
    main()
