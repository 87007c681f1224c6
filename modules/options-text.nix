# The text of docs/options.md, generated from the options, for the file in the repository and for the flake's package.
{
  lib,
  options,
  root,
}:
let
  show =
    value:
    if value._type or "" == "literalMD" then
      value.text
    else if value._type or "" == "literalExpression" then
      "`${oneLine value.text}`"
    else
      "`${oneLine (lib.generators.toPretty { multiline = false; } value)}`";
  oneLine =
    text:
    lib.concatStringsSep " " (
      lib.filter (word: word != "") (lib.splitString " " (lib.replaceStrings [ "\n" ] [ " " ] text))
    );
  file = option: lib.removePrefix "${root}/" (toString (lib.head (option.declarations ++ [ "" ])));
  entry =
    option:
    lib.concatStringsSep "\n" (
      [
        "### `${option.name}`"
        ""
        (lib.removeSuffix "\n" (
          if lib.isString option.description then option.description else option.description.text or ""
        ))
        ""
        "- type: ${option.type}"
      ]
      ++ lib.optional (option ? default) "- default: ${show option.default}"
      ++ lib.optional (option ? example) "- example: ${show option.example}"
      ++ [
        "- declared in `${file option}`"
        ""
      ]
    );
  visible = lib.filter (o: o.visible && !o.internal && !(lib.hasSuffix "._freeformOptions" o.name)) (
    lib.optionAttrSetToDocList options
  );
in
''
  # Options

  Generated from `modules/`; do not edit. `make options-doc` writes it, a test compares it with the modules.
  Keys under `appliance.settings` are those of the configuration file. This page has the keys that NixOS modules
  read; `appliance schema` describes all of them.

''
+ lib.concatMapStringsSep "\n" entry visible
