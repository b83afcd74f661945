"""What papers claim and what shows here: the ledger, the rules that decide, the worlds in which it is measured, and the runs that takes."""
