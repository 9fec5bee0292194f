"""Our own format: canonical names as they are, told by its metadata and never by names."""

from stdc_fast.checkpoints.families.family import Family

FAMILY = Family(
    name="stdc_fast",
    names=r"cp\.backbone\.features\.",
    training_only=r"(?!)",  # its files hold inference tensors only
    rename=dict,
)
