"""`recsys models`: the registry as text, and a promotion that heeds the gate."""

import typer

from recsys.errors import RegistryError
from recsys.registry import Registry, VersionInfo


def print_versions(registry: Registry) -> None:
    """Newest first; metrics are those of each version's sibling frozen at T2."""
    versions = registry.versions()
    if not versions:
        typer.echo(f"{registry.model_name} has no version yet. Run `recsys train`.")
        return
    columns = "{:>7}  {:12} {:24} {:10} {:20} {:26} {}"
    typer.echo(columns.format("version", "alias", "NDCG@10 (95 %)", "gate", "code", "created", "data set"))
    for v in versions:
        ndcg = "-" if v.ndcg is None else f"{v.ndcg.mean:.4f}"
        if v.ndcg is not None and v.ndcg.low is not None and v.ndcg.high is not None:
            ndcg += f" ({v.ndcg.low:.4f}-{v.ndcg.high:.4f})"
        aliases = ",".join(v.aliases) or "-"
        typer.echo(columns.format(v.version, aliases, ndcg, v.gate, v.code_version, v.created_utc, v.dataset_label))
        for reason in v.gate_reasons:
            typer.echo(f"         {reason}")
        if v.steps:
            typer.echo(f"         {v.steps[-1].name} since {v.steps[-1].moment_utc[:19]} UTC: {v.steps[-1].reason}")


def promote(registry: Registry, version: str, *, force: bool) -> VersionInfo:
    """Raises RegistryError for a version that the gate refused, unless `force`."""
    info = registry.resolve(version)
    if info.gate_reasons and not force:
        reasons = " ".join(info.gate_reasons)
        raise RegistryError(
            f"The gate refused version {info.version}: {reasons} Add --force to promote it all the same."
        )
    return registry.promote(version)


def print_comparison(registry: Registry, a: str, b: str, *, fail_if_worse: bool = False) -> None:
    """Metrics side by side, then settings that differ, then a sentence.

    With `fail_if_worse`: exit code 1 where b is worse than a on the same events, and RegistryError where the two cannot
    be compared so, because a check that cannot be made is not passed.
    """
    comparison = registry.compare(a, b)
    paired = comparison.differences
    left, right = f"version {comparison.a.version}", f"version {comparison.b.version}"
    typer.echo(f"{'metric':24} {left:>14} {right:>14} {'difference':>12}{'  paired 95 % interval' if paired else ''}")
    for name, (old, new) in comparison.metrics.items():
        left, right = ("-" if value is None else f"{value.mean:.4f}" for value in (old, new))
        change = f"{new.mean - old.mean:+.4f}" if old and new else "-"
        interval = f"  {paired[name].low:+.4f} to {paired[name].high:+.4f}" if name in paired else ""
        typer.echo(f"{name:24} {left:>14} {right:>14} {change:>12}{interval}")
    for name, (before, after) in comparison.parameters.items():
        typer.echo(f"setting {name}: {before} -> {after}")
    typer.echo(comparison.verdict)
    if fail_if_worse and comparison.worse is None:
        raise RegistryError(f"--fail-if-worse has nothing to decide by: {comparison.problem}")
    if fail_if_worse and comparison.worse:
        raise typer.Exit(1)
