from catchment.cli import main

main()
