"""`python -m tune_jobs reviews.yaml` is `bigmodel tune reviews.yaml`."""

import sys

from bigmodel.__main__ import main

if __name__ == "__main__":
    main(["tune", *sys.argv[1:]])
