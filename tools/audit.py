"""Known vulnerabilities among the pinned packages: `python tools/audit.py pip-audit`, or what else pip-audit is called.

Ends with 1 if there are any, and with 0 and one line that says why where nothing could be audited: pip-audit itself
reports "no known vulnerabilities" also of packages that its service knows nothing of.
"""

import json
import subprocess
import sys

ARGUMENTS = ["-r", "constraints.txt", "--no-deps", "--disable-pip", "--progress-spinner", "off", "-f", "json"]


def audit(*command: str) -> int:
    why = []
    for service in ("pypi", "osv"):
        try:
            done = subprocess.run([*command, *ARGUMENTS, "-s", service], capture_output=True, text=True)
            packages = json.loads(done.stdout)["dependencies"]
        except FileNotFoundError:
            why.append(f"{command[0]} is not installed")
            break
        except ValueError:  # no JSON: it stopped
            why.append(f"{service}: {(done.stderr.strip() or 'no answer').splitlines()[-1][:200]}")
            continue
        audited = [p for p in packages if "skip_reason" not in p]
        if not audited:
            why.append(f"{service}: knows none of the {len(packages)} packages")
            continue
        found = [p for p in audited if p["vulns"]]
        for package in found:
            for v in package["vulns"]:
                fixed = ", ".join(v["fix_versions"]) or "no version yet"
                print(f"{package['name']} {package['version']}: {v['id']}, fixed in {fixed}")
        unknown = [p["name"] for p in packages if "skip_reason" in p]
        print(
            f"{len(audited)} of {len(packages)} packages audited by {service}: {len(found)} with known vulnerabilities"
        )
        if unknown:
            print("not known there:", ", ".join(unknown))
        return 1 if found else 0
    print(f"audit skipped, nothing was checked ({'; '.join(why)})")
    return 0


if __name__ == "__main__":
    sys.exit(audit(*sys.argv[1:]))
