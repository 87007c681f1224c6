# Installs the appliance on one disk of this machine. Looks first, shows what it would erase, and erases only
# the disk whose serial number was typed, or stands in a signed answer file.
#
#   appliance-install [--disk DEVICE] [--answers FILE] [--reinstall] [--check]
#
# A finished install is never erased by accident: it needs --reinstall, and the serial all the same.
# APPLIANCE_ROOT stands before /sys, /proc, /etc and /dev, for tests.
set -euo pipefail

root="${APPLIANCE_ROOT:-}"
etc="$root/etc/appliance-installer"
disk="" answers="" reinstall=no check=no faults=0

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
  else fault "no Blackwell card on the PCI bus: seat the card, connect its power, enable Above 4G Decoding"; fi
}

check_memory() {
  local have want
  have=$(($(awk '/^MemTotal:/ { print $2 }' "$root/proc/meminfo") / 1048576))
  want=$(limit minimum_ram_gib)
  if [ "$have" -ge "$want" ]; then good "$have GiB of RAM"
  else fault "$have GiB of RAM, $want are needed: add memory or lower appliance.installer.minimumRamGiB"; fi
}

check_disk() {
  local have want
  if [ -z "$disk" ]; then fault "no disk chosen: --disk DEVICE, one of those above"; return; fi
  if ! lsblk -dno TYPE "$disk" 2>/dev/null | grep -qx disk; then fault "$disk is no whole disk"; return; fi
  have=$(($(lsblk -bdno SIZE "$disk") / 1073741824))
  want=$(limit minimum_disk_gib)
  if [ "$have" -ge "$want" ]; then good "$disk has $have GiB"
  else fault "$disk has $have GiB, $want are needed: choose a larger disk"; fi
  if lsblk -nro MOUNTPOINT "$disk" | grep -q .; then fault "$disk is in use (mounted): is it the installer's own medium?"; fi
}

check_finished() {
  lsblk -nro LABEL "$disk" | grep -qx appliance-root || return 0
  [ "$reinstall" = yes ] || fail "$disk already holds an appliance. Nothing was changed. To erase it all the same: --reinstall" 3
  echo "  !!   $disk already holds an appliance, its chats and its keys. All of it would be erased."
}

# The serial that was agreed to: from a signed answer file, else typed.
agreed_serial() {
  if [ -n "$answers" ]; then
    ssh-keygen -Y verify -f "$etc/allowed_signers" -I installer -n appliance-install -s "$answers.sig" < "$answers" > /dev/null 2>&1 \
      || fail "$answers is not signed by one of appliance.installer.answerKeys: ssh-keygen -Y sign -n appliance-install -f KEY $answers" 4
    grep -oP '^serial=\K.*' "$answers" || fail "$answers names no serial=…" 4
    return
  fi
  local typed
  echo "To erase it, type its serial number; anything else stops here." >&2
  read -r -p "serial: " typed || true
  echo "$typed"
}

echo "Disks of this machine:"
lsblk -do NAME,SIZE,MODEL,SERIAL || true
echo "Looking at the hardware:"
check_firmware
check_cards
check_memory
check_disk
[ "$faults" -eq 0 ] || fail "$faults of the checks failed; nothing was changed" 1
check_finished
if [ "$check" = yes ]; then echo "All checks hold; nothing was changed."; exit 0; fi

serial=$(lsblk -dno SERIAL "$disk")
[ -n "$serial" ] || fail "$disk reports no serial number, so nobody could name it for certain; use another disk" 1
echo "This would be erased, all of it:"
lsblk -o NAME,SIZE,FSTYPE,LABEL,MODEL,SERIAL "$disk"
agreed=$(agreed_serial) || exit $?
[ "$agreed" = "$serial" ] || fail "\"$agreed\" is not the serial number of $disk; nothing was changed" 5

disko-install --flake "$etc/flake#$(limit host)" --disk main "$disk" --write-efi-boot-entries
echo "Installed. Remove the medium and restart; the first boot proves the machine (journalctl -u appliance-smoke)."
