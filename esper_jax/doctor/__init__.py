"""Something wrong? Looks for what can be; changes nothing."""
