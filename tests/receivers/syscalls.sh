# Prints the system calls that the agent makes: see syscalls.txt.
cd /root || exit
printf '[[service]]\naddress = "203.0.113.1:80"\nname = "web"\n' > names.toml
for run in "watch --trace --event stale_reuse,rescheduled,drain_started,drain_ended,trace,loss" \
    "enforce" "enforce --action heal"; do
    # shellcheck disable=SC2086
    strace -f -qq -o calls ipvs-guard $run --duration 4s --output events.json --rotate-size 1MB \
        --names names.toml > /dev/null
    cat calls >> all
done
sed -n 's/^[0-9]* *\([a-z0-9_]*\)(.*/\1/p' all | sort -u | tr '\n' ' '
