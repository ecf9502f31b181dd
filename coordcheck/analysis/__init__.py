"""Records -> measurements -> slopes -> verdicts, and exponents -> diagnosis -> culprits; `Result`. Without torch."""
