from enginix.cli import run_program

run_program()
