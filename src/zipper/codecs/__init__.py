"""Speech codecs: waveforms to codes and back."""
