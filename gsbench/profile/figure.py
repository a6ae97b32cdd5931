"""The NVML time line as a figure: clocks, power, temperature and memory, clock-event reasons shaded."""

from __future__ import annotations

from pathlib import Path

from gsbench.profile.model import Timeline

# Colours that colour-blind readers tell apart (Okabe and Ito).
_SHADES = ("#e69f00", "#cc79a7", "#d55e00", "#f0e442")
_LINE = "#0072b2"


def draw(timeline: Timeline, heading: str, file: Path) -> None:
    """An SVG of four panels over seconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    at = [r.at_s for r in timeline.readings]
    panels = [
        ("SM clock, MHz", [float(r.sm_mhz) for r in timeline.readings]),
        ("power, W", [r.power_w for r in timeline.readings]),
        ("temperature, °C", [float(r.temperature_c) for r in timeline.readings]),
        ("memory used, GB", [r.used_bytes / 1e9 for r in timeline.readings]),
    ]
    spans = timeline.reason_spans()
    shade = dict(zip(dict.fromkeys(name for name, _, _ in spans), _SHADES * 3, strict=False))
    with plt.rc_context({"svg.hashsalt": "gsbench", "svg.fonttype": "none", "font.size": 8}):
        figure, axes = plt.subplots(len(panels), 1, sharex=True, figsize=(7, 6), layout="constrained")
        for ax, (name, values) in zip(axes, panels, strict=True):
            ax.plot(at, values, color=_LINE, linewidth=1.2)
            ax.set_ylabel(name)
            ax.margins(y=0.2)
            for reason, start, end in spans:
                ax.axvspan(start, end, color=shade[reason], alpha=0.25, linewidth=0, label=reason)
            for edge in (timeline.busy_from_s, timeline.busy_to_s):
                ax.axvline(edge, color="#666666", linewidth=0.8, linestyle=":")
        handles, labels = axes[0].get_legend_handles_labels()
        by_name = dict(zip(labels, handles, strict=True))
        if by_name:
            title = "clock held back by"
            figure.legend(by_name.values(), by_name.keys(), loc="outside upper right", frameon=False, title=title)
        axes[-1].set_xlabel("seconds (the call runs back to back between the dotted lines)")
        figure.suptitle(heading, fontsize=8, x=0.02, ha="left")
        figure.savefig(file, metadata={"Date": None})
        plt.close(figure)
