# Install the appliance on one disk of this machine. Check the hardware, show the data that would be erased, and erase
# only the disk whose serial number the operator types or a signed answer file contains.
#
#   appliance-install [--disk DEVICE] [--answers FILE] [--reinstall] [--check]
#
# A finished install is never erased by accident: that needs --reinstall and the serial number as well. An install that
# was interrupted begins again at the next start.
# APPLIANCE_ROOT is a prefix of /sys, /proc, /etc and /run, for tests.
set -euo pipefail

root="${APPLIANCE_ROOT:-}"
etc="$root/etc/appliance-installer"
disk="" answers="" reinstall=no check=no faults=0
# disko-install mounts the disk here, and its partitions have these names.
mount_point=/mnt/disko-install-root
names='disk-main-(ESP|root)'

fail() { echo "appliance-install: $1" >&2; exit "${2:-1}"; }
fault() { echo "  NO   $1" >&2; faults=$((faults + 1)); }
good() { echo "  ok   $1"; }

while [ $# -gt 0 ]; do
  case "$1" in
    --disk) disk="${2:?--disk needs a device}"; shift 2 ;;
    --answers) answers="${2:?--answers needs a file}"; shift 2 ;;
    --reinstall) reinstall=yes; shift ;;
    --check) check=yes; shift ;;
    *) fail "unknown argument $1; known: --disk DEVICE, --answers FILE, --reinstall, --check" 2 ;;
  esac
done

# disko-install requires root too, but only after the serial number was typed.
[ "$(id -u)" = 0 ] || fail "this needs root; run sudo appliance-install"

# The programs of an install inherit the lock, so that a killed install holds it as long as one of them runs.
exec 9> "$root/run/appliance-install.lock"
flock --nonblock 9 || fail "another appliance-install runs on this machine; wait until it ends" 6

limit() { grep -oP "^$1=\K.*" "$etc/limits"; }

check_firmware() {
  if [ -d "$root/sys/firmware/efi" ]; then good "started by UEFI"
  else fault "not started by UEFI: switch off legacy boot (CSM) in the firmware and start the ISO again"; fi
}

# Blackwell's consumer and workstation chips (GB202 to GB207) have PCI device ids 0x2b80 to 0x2fff.
check_cards() {
  local found=0 device vendor id
  for device in "$root"/sys/bus/pci/devices/*; do
    [ -r "$device/vendor" ] || continue
    read -r vendor < "$device/vendor"
    read -r id < "$device/device"
    if [ "$vendor" = 0x10de ] && [ $((id)) -ge $((0x2b80)) ] && [ $((id)) -le $((0x2fff)) ]; then found=$((found + 1)); fi
  done
  if [ "$found" -gt 0 ]; then good "$found Blackwell card(s)"
  else fault "no Blackwell card on the PCI bus: reseat the card, connect its power, enable Above 4G Decoding"; fi
}

check_memory() {
  local have want
  have=$(($(awk '/^MemTotal:/ { print $2 }' "$root/proc/meminfo") / 1048576))
  want=$(limit minimum_ram_gib)
  if [ "$have" -ge "$want" ]; then good "$have GiB of RAM"
  else fault "$have GiB of RAM, $want are required: add memory or lower appliance.installer.minimumRamGiB"; fi
}

check_disk() {
  local have want mounted
  if [ -z "$disk" ]; then fault "no disk given: --disk DEVICE, one of those above"; return; fi
  if ! lsblk -dno TYPE "$disk" 2>/dev/null | grep -qx disk; then fault "$disk is not a whole disk"; return; fi
  have=$(($(lsblk -bdno SIZE "$disk") / 1073741824))
  want=$(limit minimum_disk_gib)
  if [ "$have" -ge "$want" ]; then good "$disk has $have GiB"
  else fault "$disk has $have GiB, $want are required: choose a larger disk"; fi
  # A killed install leaves its mounts, and disko unmounts them.
  mounted=$(lsblk -nro MOUNTPOINTS "$disk" | sed 's/\\x0a/\n/g' | grep -vE "^($mount_point(/.*)?)?$" || true)
  [ -z "$mounted" ] || fault "$disk is mounted, perhaps as the medium of the installer: choose another disk"
}

# disko formats partitions by name, and the installed system mounts them by name: no other disk may have the same ones.
check_names() {
  local other
  other=$(lsblk -nrpo PARTLABEL,PKNAME | awk -v disk="$(realpath -m "$disk")" -v names="^$names\$" '$1 ~ names && $2 != disk && !seen++ { print $2 }')
  [ -z "$other" ] || fault "$other has partitions of an appliance as well: disconnect it, or erase all its data (wipefs --all $other)"
}

# Print the partition of the disk with this label.
labelled() { lsblk -nrpo LABEL,NAME "$disk" | awk -v label="$1" '$1 == label && !seen++ { print $2 }'; }

# An install begins with the label appliance-new (disk.nix) and ends with appliance-root. A system that was started is
# finished, whatever its label: its root was mounted in another place.
finished() {
  local new last
  [ -z "$(labelled appliance-root)" ] || return 0
  new=$(labelled appliance-new)
  [ -n "$new" ] || return 1
  last=$(dumpe2fs -h "$new" 2>/dev/null | sed -n 's/^Last mounted on: *//p')
  case "$last" in
    "" | "<not available>" | "$mount_point")
      echo "  !!   $disk contains an install that did not finish; it begins again."
      return 1
      ;;
  esac
}

check_finished() {
  finished || return 0
  [ "$reinstall" = yes ] || fail "$disk already contains an appliance; nothing was changed. To erase it: --reinstall" 3
  echo "  !!   $disk already contains an appliance, its chats and its keys. All of it would be erased."
}

# Print the confirmed serial number: from the signed answer file if given, else typed.
agreed_serial() {
  if [ -n "$answers" ]; then
    ssh-keygen -Y verify -f "$etc/allowed_signers" -I installer -n appliance-install -s "$answers.sig" < "$answers" > /dev/null 2>&1 \
      || fail "$answers is not signed by one of appliance.installer.answerKeys: ssh-keygen -Y sign -n appliance-install -f KEY $answers" 4
    grep -oP '^serial=\K.*' "$answers" || fail "$answers has no line serial=…" 4
    return
  fi
  local typed
  echo "To erase it, type its serial number; any other input stops the install." >&2
  read -r -p "serial: " typed || true
  echo "$typed"
}

echo "Disks of this machine:"
lsblk -do NAME,SIZE,MODEL,SERIAL || true
echo "Hardware checks:"
check_firmware
check_cards
check_memory
check_disk
[ -z "$disk" ] || check_names
[ "$faults" -eq 0 ] || fail "$faults of the checks failed; nothing was changed" 1
check_finished
if [ "$check" = yes ]; then echo "All checks passed; nothing was changed."; exit 0; fi

serial=$(lsblk -dno SERIAL "$disk")
[ -n "$serial" ] || fail "$disk reports no serial number, so it cannot be confirmed; use another disk" 1
echo "All of this would be erased:"
lsblk -o NAME,SIZE,FSTYPE,LABEL,MODEL,SERIAL "$disk"
agreed=$(agreed_serial) || exit $?
[ "$agreed" = "$serial" ] || fail "\"$agreed\" is not the serial number of $disk; nothing was changed" 5

disko-install --flake "$etc/flake#$(limit host)" --disk main "$disk" --write-efi-boot-entries \
  || fail "the install did not finish; fix the cause above and start appliance-install again, which begins anew" 7
sync
e2label "$(labelled appliance-new)" appliance-root
sync
echo "Installed. Remove the medium and restart; the first boot runs the smoke test (journalctl -u appliance-smoke)."
