# Exit codes of enginix after which a start would fail again (`enginix --help`): a check that failed
# (1), wrong usage (2), an input that was refused (3). Others, such as a port in use, may pass.
{
  RestartPreventExitStatus = [
    1
    2
    3
  ];
}
