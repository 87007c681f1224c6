# Power limits of cards from the planner's catalogue, by the name in the site or the name that the driver prints.
{ lib }:
let
  catalogue = (lib.importTOML ../../appliance/catalog/gpus.toml).gpus;

  # The same rule as `card_words` of appliance/catalog/catalog.py: words in any order, without those of the maker.
  makersWords = [
    "nvidia"
    "geforce"
    "edition"
    "generation"
  ];
  words =
    name:
    let
      plain = lib.replaceStrings [ "max-q" ] [ "maxq" ] (lib.toLower name);
      parts = lib.filter (part: lib.isString part && part != "") (builtins.split "[^a-z0-9]+" plain);
      interconnect = part: if builtins.match "sxm[0-9]" part != null then "sxm" else part;
    in
    lib.sort lib.lessThan (map interconnect (lib.filter (part: !(lib.elem part makersWords)) parts));
  means =
    wanted: name: card:
    lib.any (known: words known == wanted) ([ name ] ++ card.aliases or [ ]);

  # 450 W cost at most 8 % of prefill and nothing of decode against 600 W, and the room stays cooler:
  # https://github.com/local-inference-lab/rtx6kpro hardware/blackwell-power-limit-sweep.md
  recommended = name: tdp: if lib.hasPrefix "RTX PRO 6000" name then lib.min tdp 450 else null;
in
{
  # The range of the power limit in watts, and the limit for a site that names none. The result is null unless
  # the name means exactly one card of the catalogue.
  power =
    model:
    let
      found = lib.filterAttrs (means (words model)) catalogue;
      name = lib.head (lib.attrNames found);
      card = found.${name};
    in
    if lib.length (lib.attrNames found) != 1 then
      null
    else
      {
        min = card.min_power_w.value;
        max = card.max_power_w.value;
        tdp = card.tdp_w.value;
        recommended = recommended name card.tdp_w.value;
      };
}
