"""Compare the servers' clocks with this machine's clock."""

from brewctl.doctor.finding import Finding, fail, ok, warn

# Ages and lags are differences between timestamps that several machines wrote. Skew makes them wrong.
_SKEW_S, _LARGE_SKEW_S = 1.0, 60.0


def judge(check: str, whose: str, before: float, there: float, after: float) -> Finding:
    """Judge the skew of a server's clock. `before` and `after`: this machine's clock around the reading `there`.

    Half the round trip may be network delay. Only the rest of the difference counts as skew.
    """
    ahead_s = there - (before + after) / 2
    skew_s = max(0.0, abs(ahead_s) - (after - before) / 2)
    found = f"{whose} is {abs(ahead_s):.3f} s {'ahead' if ahead_s > 0 else 'behind'}"
    mend = "synchronise both machines' clocks: `timedatectl set-ntp true`"
    if skew_s > _LARGE_SKEW_S:
        return fail(check, found, mend=mend)
    return warn(check, found, mend=mend) if skew_s > _SKEW_S else ok(check, found)
