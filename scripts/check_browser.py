"""Say plainly when the tests of the pages can't run, because no Chromium is installed."""

import shutil

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

if __name__ == "__main__":
    if not any(shutil.which(name) for name in BROWSERS):
        print(
            "NOTE: no Chromium found: the tests that open the pages in a browser are left out.\n"
            "      On Debian or Ubuntu: apt-get install chromium"
        )
