"""A stand-in for the SciCat backend, as observed of scicat-backend-next 4.27; a process of its own."""
