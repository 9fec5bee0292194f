"""The library beside what people would use instead: ``stdc-fast benchmark`` and the suites in bench/."""
