"""Before what is heavy is imported."""

import gc


def walk_rarely() -> None:
    """Spare a process that imports torch and transformers a tenth of that time.

    The libraries make half a million objects that stay. Python would walk all of them again and again meanwhile. Young
    objects are looked at as often as ever.
    """
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, 1000)
