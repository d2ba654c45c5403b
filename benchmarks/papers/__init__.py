"""Two papers reproduced, RAD (arXiv 2605.27450) and MaRI (arXiv 2602.23105); `docs/papers.md` is the page."""
