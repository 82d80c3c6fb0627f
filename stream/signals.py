"""Item signals: popularity, transitions and co-visits, folded from shoppers' activity by the item's owner."""

import numpy as np

NEAR = 48  # neighbours kept of each item, the strongest
STEPS = 10  # a transition is counted up to this many steps back, with weight 1 / step
SESSION_GAP = 1800.0  # s without activity end a session
POPULARITY_HALF_LIVES = (3_600.0, 86_400.0, 1_209_600.0)  # s: 1 hour, 1 day, 14 days
TRANSITION_HALF_LIFE = 2_592_000.0  # s: 30 days

SIGNAL_VERSION = 1
SIGNAL = np.dtype(
    [
        ("item", "i8"),
        ("time", "f8"),  # all decayed figures of the row are as of this event time
        ("near_item", "i8", NEAR),  # key64 of the neighbour; 0 absent
        ("near_next", "f4", NEAR),  # T: sum of 1 / step over transitions item -> neighbour
        ("near_strict", "f4", NEAR),  # M: transitions of one step
        ("near_visit", "f4", NEAR),  # C: sessions that hold both
        ("popular", "f4", 3),  # interactions, decayed at POPULARITY_HALF_LIVES
        ("seen", "f4"),  # n: sessions that hold the item
        ("next_out", "f4"),  # O: sum of all T
        ("strict_out", "f4"),  # m: sum of all M
        ("repeat", "f4"),  # M[item, item]
        ("buys", "f4"),  # decayed at 14 days
        ("carts", "f4"),
        ("count", "f4"),  # interactions, not decayed
    ]
)

SEEN, NEXT, BACK = 1, 2, 3  # kinds of activity: of the item itself; item -> other; other -> item
ACTIVITY = np.dtype(
    [
        ("item", "i8"),  # whose signals change: the owner's key
        ("other", "i8"),  # 0 for SEEN
        ("time", "f8"),
        ("offset", "i8"),  # of the source record: the owner skips what it has seen
        ("kind", "i1"),  # SEEN, NEXT, BACK
        ("event", "i1"),  # code of the event's kind
        ("step", "i1"),  # 1..STEPS; 0 for SEEN
        ("first", "i1"),  # 1 where this is the pair's (SEEN: the item's) first time in the session
        ("pad", "i1", 4),
    ]
)
