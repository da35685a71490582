"""Cases as the properties of wrong answers look at them, made by hand."""

from utils.course.checks.registry import Case
from utils.course.checks.tried import Tried, equal


def tried(*cases):
    """Each case: its arguments, the right result and the answer's. An exception among the results was raised."""
    return [
        Tried(
            Case(lambda given=given: given),
            given,
            want,
            have,
            equal(want, have),
            isinstance(want, BaseException) or isinstance(have, BaseException),
        )
        for given, want, have in cases
    ]


def results(wants, relation):
    """Cases of one argument that says nothing, with what `relation` makes of the right results."""
    return tried(*((("x",), want, relation(want)) for want in wants))
