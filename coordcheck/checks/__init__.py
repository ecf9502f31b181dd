"""The verbs: check, diagnose, assert_width_invariant, transfer_sweep, plan, demo."""
