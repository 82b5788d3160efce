"""Three towers: scores of pages, the pair that nobody trained, and what more towers cost."""

TRANSCRIBED = 100  # utterances of generated speech that the ASR scorer transcribes
