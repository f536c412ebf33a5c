"""`speech_frames`: synthesised speech, its log mel energies, and aligned phone labels."""
