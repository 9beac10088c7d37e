"""mpcctl: steer the daemon. Every command takes --json; exit statuses are in --help and docs/cli.md."""

from __future__ import annotations

import json
import sys

import click

from mpcd.cli import (
    audit,
    bench,
    client,
    commitment,
    completion,
    dataset,
    doctor,
    identity,
    key,
    model,
    offline,
    peer,
    report,
    session,
)

EXIT_STATUSES = """
\b
Exit status: 0 done, 1 another error, 2 wrong usage, 3 no daemon, 4 no such thing,
5 exists already or wrong state, 6 refused by the peer or by policy, 7 peer unreachable,
8 peer does not speak as agreed, 9 unusable input, 10 too little disk or memory.
"""


@click.group(epilog=EXIT_STATUSES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mpcd", prog_name="mpcctl")
def mpcctl() -> None:
    """Validate an imaging model on images of another party, neither seeing the other's data."""


mpcctl.add_command(identity.show_id)
mpcctl.add_command(identity.status)
mpcctl.add_command(doctor.doctor)
mpcctl.add_command(doctor.support_bundle)
mpcctl.add_command(key.key)
mpcctl.add_command(peer.peer)
mpcctl.add_command(model.model)
mpcctl.add_command(dataset.dataset)
mpcctl.add_command(offline.offline)
mpcctl.add_command(session.session)
mpcctl.add_command(session.approve)
mpcctl.add_command(session.deny)
mpcctl.add_command(report.report)
mpcctl.add_command(commitment.commitment)
mpcctl.add_command(audit.audit)
mpcctl.add_command(bench.bench)
mpcctl.add_command(completion.completion)


def main() -> None:
    """Entry point: turns errors into a sentence, a way out and an exit status."""
    try:
        mpcctl.main(standalone_mode=False)
    except client.ControlError as error:
        if "--json" in sys.argv:
            click.echo(json.dumps({"error": error.as_dict()}, indent=2, sort_keys=True))
        click.echo(f"mpcctl: {error.message}", err=True)
        if error.hint:
            click.echo(f"    {error.hint}", err=True)
        sys.exit(error.exit_status)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("mpcctl: interrupted; the daemon goes on with its sessions", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
