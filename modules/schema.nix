# Options for keys of the site, made from schema.json, the output of `appliance schema` (`make options-doc` writes it).
# So types, defaults and descriptions are only in appliance/contract/model.py.
{ lib, format }:
let
  inherit (lib) mkOption types;
  schema = lib.importJSON ./schema.json;

  # `^…$` in the schema; a NixOS type always matches the whole text.
  whole = pattern: lib.removePrefix "^" (lib.removeSuffix "$" pattern);

  # `path` names the key in an error. A construct that no key of ours uses stops the evaluation.
  typeOf =
    path: key:
    if key ? anyOf then
      types.nullOr (typeOf path (lib.findFirst (option: option.type != "null") null key.anyOf))
    else if key ? const then
      types.enum [ key.const ]
    else if key ? enum then
      types.enum key.enum
    else if key ? pattern then
      types.strMatching (whole key.pattern)
    else if key.type or null == "string" then
      if key.minLength or 0 > 0 then types.nonEmptyStr else types.str
    else if key.type or null == "integer" then
      integer key
    else if key.type or null == "array" then
      types.listOf (typeOf path key.items)
    else if key.type or null == "object" then
      types.attrsOf format.type
    else
      throw "modules/schema.nix: no NixOS type for ${path} of schema.json; give it a type where it is declared";
  integer =
    key:
    let
      lowest = key.minimum or (key.exclusiveMinimum + 1);
    in
    if key ? maximum then types.ints.between lowest key.maximum else types.int;

  optionOf =
    section: properties: name: own:
    let
      key =
        properties.${name}
          or (throw "modules/schema.nix: schema.json has no ${section}.${name}; run `make options-doc`");
    in
    mkOption (
      {
        inherit (key) description;
      }
      // lib.optionalAttrs (!(own ? type)) { type = typeOf "${section}.${name}" key; }
      // lib.optionalAttrs (key ? default) { inherit (key) default; }
      // lib.optionalAttrs (key ? examples) { example = lib.head key.examples; }
      // own
    );
in
{
  # Options for some keys of the site itself. `own` is what replaces or completes the schema, key by key.
  topLevel = lib.mapAttrs (optionOf "Site" schema.properties);
  # Options for some keys of one section, such as `Engine`.
  section = name: lib.mapAttrs (optionOf name schema."$defs".${name}.properties);
}
