"""Parts of `scripts.reproduce_aragog`: what the paper reports, what is run, what comes out, and how it is shown."""
