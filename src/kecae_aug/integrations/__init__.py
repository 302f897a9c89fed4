"""Key exchange in other libraries' own idiom; each module needs its library and is imported by name only.

    from kecae_aug.integrations.albumentations import KeyExchange
    from kecae_aug.integrations.lightning import KeyExchangeCallback
    from kecae_aug.integrations.timm import KeyExchangeMixup

A runnable block for each, and for libraries that need no code of ours: docs/integrations.md.
"""
