"""`varlit sample`: from flags to pictures; rejection sampling for all verbs that draw."""
