"""Known weaknesses of what constraints.txt names: exit status 1 where one has a fix.

`python .ci/audit.py [CONSTRAINTS]` needs pip-audit. Advisories that cannot be reached are no weakness: that is
said in one line, with exit status 0. pip-audit itself passes a package that it could not ask about.
"""

import json
import subprocess
import sys
from typing import Any

ASK = ["pip_audit", "--no-deps", "--disable-pip", "--progress-spinner=off", "--format=json"]


def main(constraints: str) -> int:
    """The exit status."""
    command = [sys.executable, "-m", *ASK, "-r", constraints]
    asked = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    try:
        packages: list[dict[str, Any]] = json.loads(asked.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        why = (asked.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1]
        if "invalid requirements" in why:
            print(f"audit: {constraints} cannot be read ({why}). Make it with `make constraints`.")
            return 2
        print(f"audit: the advisories cannot be reached, nothing was checked ({why})")
        return 0
    known = [one for one in packages if "vulns" in one]
    if not known:
        print(f"audit: the advisories cannot be reached, none of {len(packages)} packages was checked")
        return 0
    fixed = 0
    for one in known:
        for weakness in one["vulns"]:
            fixes = ", ".join(weakness["fix_versions"])
            fixed += bool(fixes)
            mended = f"fixed in {fixes}" if fixes else "no fix yet"
            print(f"audit: {one['name']} {one['version']}: {weakness['id']}, {mended}")
    print(f"audit: {len(known)} of {len(packages)} packages checked, {fixed} known weaknesses with a fix")
    if fixed:
        print("audit: raise these versions with `make constraints ARGS=--upgrade`")
    return 1 if fixed else 0


if __name__ == "__main__":
    sys.exit(main(*(sys.argv[1:] or ["constraints.txt"])))
