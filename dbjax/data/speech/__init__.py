"""The `speech_frames` data set: log mel energies of synthesised speech, labelled by phone."""
