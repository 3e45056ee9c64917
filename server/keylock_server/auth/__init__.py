"""Who is calling: from a call to a verified license, or the reason why not."""
