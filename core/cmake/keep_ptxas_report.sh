# Runs a compiler, `keep_ptxas_report.sh COMPILER … -o OBJECT …`, and keeps what ptxas says of
# registers and spills in OBJECT.ptxas instead of showing it.
object=
for argument; do
  [ "$previous" = -o ] && object=$argument
  previous=$argument
done
"$@" 2>"$object.ptxas"
status=$?
# A failure is shown whole, and so is whatever is no report.
if [ "$status" = 0 ]; then
  grep -v -e '^ptxas info' -e '^    [0-9]* bytes stack frame' "$object.ptxas" >&2
else
  cat "$object.ptxas" >&2
fi
exit "$status"
