"""`lowbit completion SHELL`."""

from __future__ import annotations

import click


@click.command("completion", short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash:  lowbit completion bash > ~/.local/share/bash-completion/completions/lowbit
    zsh:   lowbit completion zsh > "${fpath[1]}/_lowbit"
    fish:  lowbit completion fish > ~/.config/fish/completions/lowbit.fish
    """
    from click.shell_completion import get_completion_class

    from lowbit.cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None, f"click knows no {shell}"
    # Not `.source()`'s version check, which starts a bash to ask for its version.
    made = kind(cli, {}, "lowbit", "_LOWBIT_COMPLETE")
    click.echo(made.source_template % made.source_vars())
