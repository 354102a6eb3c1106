"""The README's first session does what the README says it prints.

    readme.py README.md WS_URL
"""

import asyncio
import pathlib
import re
import sys

import peers

STANDARD_URL = "ws://127.0.0.1:18080/ws"


async def check(text, url):
    block = re.search(r"^```python\n(.*?)^```\n+It prints (.*?)\. ", text, re.DOTALL | re.MULTILINE)
    assert block, "no ```python block that is followed by `It prints ...`"
    program, promise = block.groups()
    assert STANDARD_URL in program, f"{STANDARD_URL} is not in the program"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program.replace(STANDARD_URL, url),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), peers.PATIENCE_S)
    except asyncio.TimeoutError:
        process.kill()
        raise AssertionError("it does not end") from None
    lines = output.decode().splitlines()
    for line in re.findall(r"`([^`]+)`", promise):
        assert line in lines, f"{line!r} is not in {lines}"
    assert process.returncode == 0, f"exit status {process.returncode}: {lines}"


async def main(readme, url):
    results = peers.Results()
    await results.run("python readme: the first session", check(pathlib.Path(readme).read_text(), url))
    return results.failures


if __name__ == "__main__":
    sys.exit(1 if asyncio.run(main(*sys.argv[1:])) else 0)
