"""Videos as pictures at their times, with the sound behind them."""
