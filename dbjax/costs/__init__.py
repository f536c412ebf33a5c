"""Reading compiled programs: instructions, what each costs, and in which order they can run."""
