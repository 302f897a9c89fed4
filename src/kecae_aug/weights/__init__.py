"""Weights: files (:mod:`.io`), where they are found (:mod:`.sources`), the Hub (:mod:`.hub`), model cards (:mod:`.card`)."""
