"""The slots of a page, by code and by name. Nothing else, so that a command's help need not load what makes pages."""

# Position is the code; append only.
SLOTS = ("", "for_you", "because_you_viewed", "trending", "in_your_categories", "fresh", "buy_again")
FOR_YOU, BECAUSE, TRENDING, CATEGORIES, FRESH, AGAIN = range(1, len(SLOTS))
