"""The profile `rehearsal`: a made mirror of the sites that t4 downloads from, and a timed run on it."""
