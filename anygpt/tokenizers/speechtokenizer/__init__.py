"""SpeechTokenizer: 50 speech codes a second in eight residual levels, the first of them semantic."""
