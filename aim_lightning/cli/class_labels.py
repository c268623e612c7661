"""Classes that a person names on the command line."""

from aim_lightning.utils.errors import UserError

DEFAULT_CLASSES = 10


def choose_classes(text: str | None, class_names: list[str]) -> list[int]:
    """Labels for "sneaker,bag", "7,8" or "tench, goldfish"; None means the first ten.

    A name may hold commas, as ImageNet's do ("tench, Tinca tinca"): written out it is found whole, and each of its
    parts finds it too where no other class has the same.

    Raises:
        UserError: no such class.
    """
    if text is None:
        return list(range(min(len(class_names), DEFAULT_CLASSES)))
    known, labels = _known(class_names), []
    parts = _parts(text)
    while parts:
        whole = (count for count in range(len(parts), 0, -1) if ", ".join(parts[:count]) in known)
        if (count := next(whole, None)) is None:
            shown = "; ".join(class_names[:12]) + ("; …" if len(class_names) > 12 else "")
            raise UserError(f"--classes: there is no class {parts[0]!r}; classes are {shown}")
        labels.append(known[", ".join(parts[:count])])
        parts = parts[count:]
    return labels


def _known(class_names: list[str]) -> dict[str, int]:
    """Label by whole name, by number, and by a part of the name that is one class's alone."""
    names = [", ".join(_parts(name)) for name in class_names]
    owners: dict[str, set[int]] = {}
    for label, name in enumerate(names):
        for part in name.split(", "):
            owners.setdefault(part, set()).add(label)
    parts = {part: min(labels) for part, labels in owners.items() if len(labels) == 1}
    numbers = {str(label): label for label in range(len(names))}
    return {**parts, **numbers, **{name: label for label, name in enumerate(names)}}


def _parts(text: str) -> list[str]:
    return [" ".join(part.lower().split()) for part in text.split(",")]
