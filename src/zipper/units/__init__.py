"""Units: waves to codes and back (codec), codes to columns and back (pattern), text to ids and back (text),
and the store in which all of a corpus stands encoded (store)."""
