"""mpcctl completion: what makes a shell complete mpcctl's words."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from mpcd.cli import options, output

VARIABLE = "_MPCCTL_COMPLETE"  # what click's entry point looks for


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@options.common
@click.pass_context
def completion(context: click.Context, session: output.Session, shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    bash: mpcctl completion bash > ~/.local/share/bash-completion/completions/mpcctl
    zsh:  mpcctl completion zsh  > a folder of $fpath, as _mpcctl
    fish: mpcctl completion fish > ~/.config/fish/completions/mpcctl.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(context.find_root().command, {}, "mpcctl", VARIABLE).source()
    session.show({"script": script}, lambda result: click.echo(result["script"]))
