from enginix.cli import main

raise SystemExit(main())
