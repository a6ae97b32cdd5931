from gsbench.cli import main

main()
