"""Single-device model code that reads like the papers; nothing in here knows how many ranks there are."""
