"""Binary search over a sorted list, with the mistakes that are usually made in it."""


def lower_bound(items, wanted):
    """The first place at which `wanted` could be inserted and the list stay sorted.

    The invariant: everything before `low` is smaller, everything from `high` on is not.
    """
    low, high = 0, len(items)
    while low < high:
        # In languages with fixed integers, low + high may overflow; this form does not.
        middle = low + (high - low) // 2
        if items[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low


def contains(items, wanted):
    """Whether the sorted list holds `wanted`."""
    place = lower_bound(items, wanted)
    return place < len(items) and items[place] == wanted


def count_between(items, first, last):
    """How many items of the sorted list lie in the half-open range from `first` to `last`."""
    return max(0, lower_bound(items, last) - lower_bound(items, first))
