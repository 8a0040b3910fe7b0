"""Which country an adjective names: only those that have named the same one through the past century."""

COUNTRIES = {
    "Afghan": "Afghanistan", "Albanian": "Albania", "Algerian": "Algeria", "American": "United States", "Angolan": "Angola",
    "Argentine": "Argentina", "Argentinian": "Argentina", "Armenian": "Armenia", "Australian": "Australia", "Austrian": "Austria",
    "Azerbaijani": "Azerbaijan", "Bangladeshi": "Bangladesh", "Barbadian": "Barbados", "Belarusian": "Belarus", "Belgian": "Belgium",
    "Bolivian": "Bolivia", "Brazilian": "Brazil", "British": "United Kingdom", "Bulgarian": "Bulgaria", "Burkinabé": "Burkina Faso",
    "Burmese": "Myanmar", "Cambodian": "Cambodia", "Cameroonian": "Cameroon", "Canadian": "Canada", "Chilean": "Chile",
    "Chinese": "China", "Colombian": "Colombia", "Croatian": "Croatia", "Cuban": "Cuba", "Cypriot": "Cyprus",
    "Czech": "Czech Republic", "Danish": "Denmark", "Dominican": "Dominican Republic", "Dutch": "Netherlands", "Ecuadorian": "Ecuador",
    "Egyptian": "Egypt", "Estonian": "Estonia", "Ethiopian": "Ethiopia", "Filipino": "Philippines", "Finnish": "Finland",
    "French": "France", "German": "Germany", "Ghanaian": "Ghana", "Greek": "Greece", "Guatemalan": "Guatemala",
    "Haitian": "Haiti", "Hungarian": "Hungary", "Icelandic": "Iceland", "Indian": "India", "Indonesian": "Indonesia",
    "Iranian": "Iran", "Iraqi": "Iraq", "Israeli": "Israel", "Italian": "Italy", "Ivorian": "Ivory Coast",
    "Jamaican": "Jamaica", "Japanese": "Japan", "Jordanian": "Jordan", "Kazakh": "Kazakhstan", "Kenyan": "Kenya",
    "Latvian": "Latvia", "Lebanese": "Lebanon", "Liberian": "Liberia", "Libyan": "Libya", "Lithuanian": "Lithuania",
    "Malawian": "Malawi", "Malaysian": "Malaysia", "Malian": "Mali", "Maltese": "Malta", "Mexican": "Mexico",
    "Moroccan": "Morocco", "Mozambican": "Mozambique", "Nepalese": "Nepal", "New Zealand": "New Zealand", "Nicaraguan": "Nicaragua",
    "Nigerian": "Nigeria", "North Korean": "North Korea", "Norwegian": "Norway", "Pakistani": "Pakistan", "Panamanian": "Panama",
    "Paraguayan": "Paraguay", "Peruvian": "Peru", "Polish": "Poland", "Portuguese": "Portugal", "Romanian": "Romania",
    "Russian": "Russia", "Rwandan": "Rwanda", "Saudi": "Saudi Arabia", "Senegalese": "Senegal", "Serbian": "Serbia",
    "Singaporean": "Singapore", "Slovak": "Slovakia", "Slovene": "Slovenia", "Somali": "Somalia", "South African": "South Africa",
    "South Korean": "South Korea", "Spanish": "Spain", "Sri Lankan": "Sri Lanka", "Sudanese": "Sudan", "Swedish": "Sweden",
    "Swiss": "Switzerland", "Syrian": "Syria", "Taiwanese": "Taiwan", "Tanzanian": "Tanzania", "Thai": "Thailand",
    "Trinidadian": "Trinidad and Tobago", "Tunisian": "Tunisia", "Turkish": "Turkey", "Ugandan": "Uganda", "Ukrainian": "Ukraine",
    "Uruguayan": "Uruguay", "Venezuelan": "Venezuela", "Vietnamese": "Vietnam", "Yemeni": "Yemen", "Zambian": "Zambia",
    "Zimbabwean": "Zimbabwe",
}  # fmt: skip
# what a passage may call a person besides
OTHERS = """Athenian Byzantine English Flemish Florentine Genoese Georgian Irish Korean Ottoman Persian Prussian Roman
Scottish Sicilian Soviet Venetian Welsh""".split()
# countries that have been there for so long that the adjective means them in older lives too
LASTING = set(
    """Argentina,Australia,Austria,Brazil,Canada,Chile,Denmark,France,Hungary,Japan,Mexico,Netherlands,Norway,Poland,
Portugal,Russia,Spain,Sweden,Switzerland,United States""".replace("\n", "").split(",")
)
